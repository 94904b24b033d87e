"""A local page on which a person searches a store of embeddings and looks at the masks."""
