"""HTTP as all routes use it: requests, bodies, operators, the OpenAPI document."""
