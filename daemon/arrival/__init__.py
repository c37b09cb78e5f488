"""Finds the files that have arrived and are complete.

In: the drop folder, by events and listings. Out: `Arrived` micrographs, in the order of processing.
Front door: `watcher.Watcher`, `tracker.Tracker` and `rules`; `folder` lists a folder once, for commands.
"""
