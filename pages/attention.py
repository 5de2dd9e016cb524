"""Attention KL."""

from app.page import open_page

page = open_page("Attention KL", "")
