"""HTTP for all routes: requests, bodies, queries, operators and their actions, and the OpenAPI document."""
