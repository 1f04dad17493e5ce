"""How often the doctor is right: set-ups known to be sick or healthy, and what `bnprobe.diagnose` says about them."""
