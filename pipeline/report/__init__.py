"""report.html: what a run did and found, on one page that needs nothing else to be opened.

read      run folder → records; what is missing or damaged becomes a problem that the page names
tables    tables/*.html → parts of the page
charts    curves → inline SVG in the page's colours
pictures  examples/ of the trials → truth and predictions side by side
contents  records → figures, results by class and pictures
markup    parts that others wrote, fitted into the page
page      all of it → HTML
"""
