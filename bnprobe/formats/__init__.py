"""How a diagnosis is written: text, table, JSON, SARIF, and the piece of HTML that a notebook shows.

Each is a function of a :class:`bnprobe.diagnosis.Diagnosis`, whose methods call it. Nothing here needs torch.
"""
