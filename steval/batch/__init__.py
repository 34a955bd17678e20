"""Batch jobs: manifests, the ledger of what is done, engines that do it on this machine or on a Ray cluster."""
