"""The Streamlit shell around `kvviz`: what is shown, where it is kept, how it is asked for."""
