"""Ways to compute causal attention: one short definition, and the fast forms that are tested against it."""
