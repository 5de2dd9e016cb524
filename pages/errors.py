"""K/V errors."""

from app.page import open_page

page = open_page("K/V errors", "")
