"""Layer 7, the doors: the command line and the report. Thin: each command calls the layers below and prints or draws a
finding."""
