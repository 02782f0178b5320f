"""What a study has found, as rows, and how numbers are written."""
