"""Layer 7, the doors: the command line and the report. Thin: each calls into the layers below and shows a finding."""
