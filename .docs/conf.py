project = 'faceid_nb'
author = copyright = 'The faceid_nb authors'
extensions = ['myst_nb']
html_theme = 'furo'
html_title = 'faceid_nb'
html_static_path = ['static']
html_css_files = ['book.css']
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False     # It fetches pages, which a browser refuses for files
pygments_style = 'a11y-high-contrast-light'
pygments_dark_style = 'a11y-high-contrast-dark'
maximum_signature_line_length = 88  # A longer signature has one parameter a line
nb_execution_mode = 'off'
nb_merge_streams = True
myst_enable_extensions = []         # Formulas are pictures by now (book.py)
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type', 'ref.python']
