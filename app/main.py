"""The app's entry: `streamlit run app/main.py`, or `minipo app`."""

import streamlit as st

st.set_page_config(page_title="minipo: why more negatives can teach less", page_icon="📉", layout="wide")
st.navigation([st.Page("collapse.py", title="The collapse", default=True)], position="top").run()
