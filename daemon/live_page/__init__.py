"""The live page: a small web server on loopback, and the pictures it shows.

In: the ledger (read-only), results and their records, the service's health. Out: JSON, PNG, Prometheus text.
Front door: `server.Monitor` speaks HTTP, `routes.Page` answers; the browser's side is in `site/`.
"""
