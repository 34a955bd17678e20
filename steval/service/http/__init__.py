"""What is common to all routes: keys, bodies, errors, metrics, the route table, the OpenAPI document."""
