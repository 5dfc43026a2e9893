"""Statistics, tables, figures and findings: pandas in, files out. Neither torch nor ray is imported here."""
