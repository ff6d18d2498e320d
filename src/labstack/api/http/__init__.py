"""What all routes use of HTTP: requests, bodies, queries, operators and their actions, the OpenAPI document."""
