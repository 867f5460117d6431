"""A hundred and twenty days of two environments: what happens, who does it, and what has to hold each evening."""
