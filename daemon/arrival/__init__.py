"""Which files have arrived and are complete.

In: the drop folder, seen by events and listings. Out: `Arrived` micrographs, in the order in which they are to be done.
Front door: `watcher.Watcher` lists, `tracker.Tracker` decides (pure: the clock is passed in), `rules` knows the names.
"""
