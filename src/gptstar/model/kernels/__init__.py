"""Fast ways to compute causal attention, each of which is tested against the definition.

They take `query`, `key` and `value`, `(batch, head, position, d_head)`, and return the same shape. They may take:

    slopes: `(head,)`, float32, of a bias that is linear in distance.
    documents: `(batch, position)`, int64: the document of each position, to which its attention is restricted.
    dropout: the probability of dropping an attention weight.
"""
