"""The service that watches a folder: threads, bounded queues, and the steps of one micrograph.

In: settings, and jobs from the ledger. Out: results in the output folder, an entry for each in the ledger, metrics.
Front door: `supervisor.supervise` runs `service.Service`; `steps` processes one micrograph without threads, `workers`
decides what follows an error, `lanes` which micrograph is next.
"""
