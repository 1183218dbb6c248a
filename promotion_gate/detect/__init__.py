"""The numerics under the checks: arrays in, numbers out."""
