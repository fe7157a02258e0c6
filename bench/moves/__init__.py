"""Moving guests under traffic: what it costs, with divhook and on a plain bridge."""
