"""The vocabulary, the policy and the decision."""
