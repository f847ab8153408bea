"""The page of `flowtok demo` as a Hugging Face Space; build.sh puts it into a folder with the code and a model."""

import os

import flowtok
from flowtok.app.ui.page import make_page, show

page = make_page(flowtok.load("emoji"))

if __name__ == "__main__":
    show(page, "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1", 7860)
