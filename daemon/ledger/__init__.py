"""The list of every micrograph seen and its state: one SQLite file, kept across restarts.

In: files that the watcher found, and the outcome of each. Out: the next `Job`, counts, and the jobs of a session.
Front door: `jobs.Ledger`, which gives `job.Job`; `sessions.find`; `table.Table` for the page.
"""
