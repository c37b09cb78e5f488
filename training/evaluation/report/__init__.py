"""An evaluation as one HTML page: figures, tables and text.

In: the rows of an evaluation and the curve of a training. Out: `report.html`, with the pictures inside.
Front door: `page.write`.
"""
