"""What has been seen, done and refused: one SQLite file that outlives the process.

In: files as the watcher found them, and what became of each. Out: the next `Job`, counts, and the jobs of a session.
Front door: `jobs.Ledger`; `sessions.find` chooses the jobs of a past session.
"""
