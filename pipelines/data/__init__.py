"""Raw data as it lies: files, formats, tables, column types and expressions."""
