"""The model: carrier, loading and saving, weights by reference, the graphsurgeon editing view, facts."""
