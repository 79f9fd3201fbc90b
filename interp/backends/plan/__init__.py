"""A forward pass as a plan: places, captures and edits, checked and costed before any module is touched."""
