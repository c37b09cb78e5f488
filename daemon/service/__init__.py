"""The service that watches a folder: threads, bounded queues, and the steps of one micrograph.

In: settings, and jobs from the ledger. Out: results in the output folder, an entry for each in the ledger, metrics.
Front door: `supervisor.supervise`; `steps`, `fingerprints`, `sections` and `purge` serve single commands, too.
"""
