"""Static checks: what can be said of a model without running it, and where a run would leave what was said."""
