"""Fast implementations of causal attention. Each is tested against a plain reference.

All take `query`, `key` and `value`, `(batch, head, position, d_head)`, and return the same shape. Some also take:

    slopes: `(head,)`, float32: ALiBi's slopes; the bias is `-slope * distance`.
    documents: `(batch, position)`, int64: the document of each position; a token attends to its own document only.
    dropout: the probability of dropping an attention weight.
"""
