"""Which layers a model has (:mod:`~bnprobe.hooks.sites`) and how they are listened to (:mod:`~bnprobe.hooks.taps`)."""
