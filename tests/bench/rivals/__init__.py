"""Published detectors of backdoors, run on the models that the gate was measured on.

Reimplemented from their papers, or called as their library ships them; nothing here is part of the gate.
"""
