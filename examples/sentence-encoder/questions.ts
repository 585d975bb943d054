/** What the book is asked unless told otherwise. */
export const questions: readonly string[] = [
  'Two strangers have to share a bed at the inn.',
  'Why is the colour white so frightening?',
  'a thunderstorm at sea, with lightning in the masts',
  'What does the cook say to the sharks?',
];
