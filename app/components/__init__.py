"""What Streamlit does not draw itself."""
