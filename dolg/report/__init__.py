"""What people look at: tables of results and the HTML report."""
