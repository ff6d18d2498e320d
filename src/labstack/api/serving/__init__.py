"""From the registry's roles to loaded versions, the same ones in every worker."""
