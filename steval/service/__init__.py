"""The prediction and scoring service on BentoML: schemas, limits, batching, page; the mathematics is elsewhere."""
