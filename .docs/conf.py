project = 'faceid_nb'
author = copyright = 'The faceid_nb authors'
extensions = ['myst_nb']
html_theme = 'furo'
html_title = 'faceid_nb'
html_static_path = []
nb_execution_mode = 'off'
nb_merge_streams = True
myst_enable_extensions = []      # formulas are pictures by now (book.py)
suppress_warnings = ['myst.header', 'myst.xref_missing', 'mystnb.unknown_mime_type', 'misc.highlighting_failure']
