"""Head mixers."""

from app.page import open_page

page = open_page("Head mixers", "")
