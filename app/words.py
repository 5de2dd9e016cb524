"""Words of others on a page: names, texts and messages are shown as they are, and errors say what, why and what to do."""

from __future__ import annotations

import streamlit as st


def explain(what: str, why: str, do: str) -> None:
    """An error in place: what happened, why, what to do."""
    st.error(f"**{plain(what)}**\n\n{plain(why)}\n\n{plain(do)}", icon=":material/error:")


def plain(text: str) -> str:
    """Text as Markdown that shows it as it is: names, prompts and messages are never markup."""
    return "".join(
        f"\\{character}" if character in "\\`*_{}[]()<>#+-.!|~$:" else character for character in text
    )
