"""How well a repository defends its training data, answered from the repository itself."""
