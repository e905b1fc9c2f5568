"""What people have, and how it becomes samples: one module for each kind of layout."""
