"""report.md, report.html and the model card of a run, made from stored results alone.

`gather` (record.py) collects a run from storage, `describe` (content.py) says what is worth saying, `markdown.py` and
`page.py` write it down: one content, two forms.
"""
