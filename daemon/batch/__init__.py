"""A whole archive on many computers: what there is to do, whose part it is, and what is done.

In: a folder of micrographs, and the folder of their results. Out: a manifest, failures, counts, a script for SLURM.
Front door: `manifest.freeze`, `manifest.load`, `shard.Shard`, `existing.Existing`, `survey.survey`, `slurm.script`.
"""
