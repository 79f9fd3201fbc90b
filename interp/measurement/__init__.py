"""What an analysis is: registered, scored against nulls, judged by removal, checked by the public tests."""
