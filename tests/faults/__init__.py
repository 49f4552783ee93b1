"""The program under real faults of machines and networks; needs root and scripts/install-real-parts."""
