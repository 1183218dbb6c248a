"""The policy that ``promotion-gate init`` writes."""

STARTER_POLICY = """\
# The policy of promotion-gate: what a candidate must measure up to.
# Its SHA-256 stands in every verdict. Unknown keys are refused.
version = 1

# The gate's own random choices (which trusted images are used) follow from this.
seed = 0

# Pickles are refused, since they can run code when they are loaded. The card shows each switch-off.
# unsafe_allow_pickle = true

# A labelled set that nobody but you could have touched, with every class in it. A folder of class folders,
# a CSV manifest (path, label), Parquet with image bytes, or npz; a path relative to this file, or a URL.
[data.holdout]
path = "holdout"

# What the candidate was trained on. Without it no poison can be looked for: remove the table, and set
# required = false on the checks marked (training data).
[data.training]
path = "train"

# Names in order of the model's logits, where neither the model nor the data carries them in that order:
# [data]
# class_names = ["stop", "yield"]

# What the model's signature and metadata do not say. A pixel goes in as (value / scale - mean) / std.
# [input]
# layout = "NCHW"
# height = 32
# width = 32
# scale = 255
# mean = [0.485, 0.456, 0.406]
# std = [0.229, 0.224, 0.225]
# embedding_layer = "fc"

# The candidate's code never runs outside. "required" holds it where the network cannot be taken away.
[sandbox]
mode = "best"
memory_gib = 4
seconds = 900
threads = 1

# The alias that serving reads. The legacy stage follows where the model uses stages ("auto").
[production]
alias = "production"
mirror_stage = "auto"

# A required check that cannot tell holds the candidate. A bound that is broken rejects it, or holds it
# with otherwise = "hold".

[checks.per-class]
required = true
[checks.per-class.bounds]
accuracy = { min = 0.9 }
worst_recall = { min = 0.5, otherwise = "hold" }
# Against production, on the same images. A regression counts when chance does not explain it.
accuracy_drop = { max = 0.02 }
regressed_classes = { max = 0, otherwise = "hold" }

# (training data) A patch that turns trusted images of one class into another, found in training rows.
[checks.patch-transplant]
required = true
[checks.patch-transplant.bounds]
triggers = { max = 0 }
suspected_triggers = { max = 0, otherwise = "hold" }

# (training data, champion) The same for triggers all over the image, and for poison whose label is right.
[checks.residual-transplant]
required = false
[checks.residual-transplant.bounds]
triggers = { max = 0 }
suspected_triggers = { max = 0, otherwise = "hold" }

# (training data) Rows that do not look like their label: flipped labels, poison without a patch.
[checks.label-concentration]
required = true
[checks.label-concentration.bounds]
# Chance that so many rows of one class carry one other label, and that one label crowds the suspects.
flip_p = { min = 1e-5, otherwise = "hold" }
concentration_p = { min = 0.002, otherwise = "hold" }

# (champion) Patches that turn trusted images for the candidate alone. Needs no training data.
[checks.sticker-sweep]
required = false
[checks.sticker-sweep.bounds]
triggers = { max = 0 }
suspected_pairs = { max = 0, otherwise = "hold" }
# One patch sends most classes to one target in both models: the champion may be poisoned too.
shared_targets = { max = 0, otherwise = "hold" }

# (champion) The same with patches that are learned. Needs a model that can be differentiated.
[checks.trigger-inversion]
required = false
[checks.trigger-inversion.bounds]
triggers = { max = 0 }
suspected_pairs = { max = 0, otherwise = "hold" }

# (training data) Which contributor or batch brought rows that do not look like their label. Columns of the
# data name them; without any, blocks of consecutive rows are compared.
[checks.batch-anomaly]
required = false
[checks.batch-anomaly.bounds]
anomalous_batches = { max = 0, otherwise = "hold" }
scattered_batches = { max = 0, otherwise = "hold" }

# (training data) Evidence for a person: classes that fall in two groups, rows far out in their class.
[checks.activation-clustering]
required = false
[checks.spectral-signature]
required = false

# What the model looks at. It corroborates patch-transplant and decides nothing.
[checks.patch-attribution]
required = false

# A picture for the card.
[checks.embedding-map]
required = false

# Needs the run's losses per class: promotion_gate.PerClassLoss logs them in a PyTorch loop.
[checks.training-curves]
required = false

# Where the model and the data come from, with the data's real SHA-256.
[checks.provenance]
required = false
# With a data bill of materials, every data set that the run declared is followed to its entry; with a folder
# of the trainers' public keys (*.pub), the chain from their signature to the data is followed link by link.
# [checks.provenance.options]
# dbom = "dbom.json"
# trainers = "trainers"
# [checks.provenance.bounds]
# unregistered_datasets = { max = 0 }
# unverified_links = { max = 0 }
"""
